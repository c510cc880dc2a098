//! ebb-mesh
