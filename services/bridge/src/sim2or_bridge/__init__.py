"""The robot's side: the control loop with the safety kernel in force."""
