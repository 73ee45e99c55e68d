"""Episodes to LeRobot datasets: convert, merge, split, audit."""
