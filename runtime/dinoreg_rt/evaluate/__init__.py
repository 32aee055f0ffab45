"""Scores of registrations and of encoders against labels and landmarks."""
