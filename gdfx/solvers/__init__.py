"""Line searches and quasi-Newton methods, which evaluate the loss at more points than one."""
