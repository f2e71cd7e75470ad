"""The minimal CNN trainer."""
