"""What touches LeRobot."""
