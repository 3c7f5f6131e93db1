//! federation-tests
