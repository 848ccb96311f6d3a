"""Accuracy, calibration, geometry and the records of evaluations."""
