"""What a privacy claim is worth: budgets without data, rows proved again, other tools' settings, statements in words."""
