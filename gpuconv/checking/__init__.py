"""The problems that every backend is held to, and the commands that hold it to them."""
