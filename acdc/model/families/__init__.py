"""Where the weights of each family of architectures are."""
