"""Record a forward pass once, replay its backward pass many times: tape, activation rules, targets, inputs."""
