"""Labels that a teacher gives to a corpus without any."""
