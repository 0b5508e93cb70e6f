"""What settings are made of: schedules, constrained types, and the settings of cameras and prompts."""
