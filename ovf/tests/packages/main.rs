//! Packages from outside: those of known tools, hostile ones, and our own.

mod export;
mod hostile;
mod make;
mod samples;
