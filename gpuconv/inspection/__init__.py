"""What would be launched for a problem, and what it compiles to, for any GPU, without one."""
