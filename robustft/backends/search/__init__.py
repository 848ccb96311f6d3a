"""What the GPU searches share: bounds, certificate, and banks that stay on the host."""
