"""What every service needs to be one: life cycle, errors, deadlines, arrays, topology."""
