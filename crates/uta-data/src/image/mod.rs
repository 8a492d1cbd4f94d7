//! Pictures: files to pixels, and pixels to other sizes, as libjpeg-turbo and Pillow do it.

pub(crate) mod crop;
pub(crate) mod decode;
pub(crate) mod jpeg;
pub(crate) mod orientation;
pub(crate) mod pillow;
pub(crate) mod png;
pub(crate) mod resize;
pub(crate) mod scans;
