"""What would keep this machine, its libraries or an encoder from doing what a recipe asks."""
