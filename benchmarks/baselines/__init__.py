"""What the product is measured against; nothing in the package uses it."""
