"""The commands train and export."""
