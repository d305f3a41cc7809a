"""What a training batch holds: whole choices, who made them, and each response once."""
