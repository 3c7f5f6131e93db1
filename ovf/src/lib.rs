//! ovf
