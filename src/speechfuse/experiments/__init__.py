"""Many runs that answer one question: sweeps, their tables and their report."""
