"""The federation over Flower: parties in other organisations, reached through a SuperLink."""
