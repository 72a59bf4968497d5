"""A local web page that shows a running control loop, and can stop its robot."""
