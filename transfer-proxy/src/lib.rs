//! transfer-proxy
