"""Pose estimators and the script that runs them: stand-alone files for environments of their own."""
