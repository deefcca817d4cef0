//! Windows: when they begin and end, and what is counted in them. Pure: time is an argument.
