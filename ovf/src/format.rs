//! Formats of disk images, by the addresses that descriptors name them with.

/// The format of a disk image.
///
/// DSP0243 names formats by URI and defines none, so these are the ones that tools write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskFormat {
    /// The disk's bytes.
    Raw,
    /// VMware's format, compressed and in one stream.
    VmdkStream,
    /// VMware's format, as a sparse extent in one file.
    VmdkSparse,
    /// QEMU's format.
    Qcow2,
    /// Microsoft's older format.
    Vhd,
}

impl DiskFormat {
    /// The address that [`crate::write_ova`] names raw images with; Ganeti does the same.
    pub const RAW_URI: &'static str = "http://en.wikipedia.org/wiki/Byte";

    /// What `qemu-img -f` calls it.
    pub fn qemu_name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::VmdkStream | Self::VmdkSparse => "vmdk",
            Self::Qcow2 => "qcow2",
            Self::Vhd => "vpc",
        }
    }

    /// The format that an `ovf:format` means.
    pub(crate) fn of_uri(uri: &str) -> Option<Self> {
        let address = uri.strip_prefix("http://").or_else(|| uri.strip_prefix("https://"))?;
        let (page, fragment) = address.split_once('#').unwrap_or((address, ""));
        let fragment = fragment.to_ascii_lowercase();
        match page {
            "www.vmware.com/interfaces/specifications/vmdk.html"
            | "www.vmware.com/specifications/vmdk.html"
            | "www.vmware.com/technical-resources/interfaces/vmdk_access.html" => {
                match fragment.as_str() {
                    "streamoptimized" | "compressed" => Some(Self::VmdkStream),
                    "" | "sparse" | "monolithicsparse" | "monolithic_sparse" => {
                        Some(Self::VmdkSparse)
                    }
                    // Flat and split images are a text file that names others.
                    _ => None,
                }
            }
            "www.gnome.org/~markmc/qcow-image-format.html"
            | "people.gnome.org/~markmc/qcow-image-format.html" => Some(Self::Qcow2),
            "en.wikipedia.org/wiki/Byte" | "en.wikipedia.org/wiki/Raw_disk_image" | "raw" => {
                Some(Self::Raw)
            }
            "go.microsoft.com/fwlink/?LinkId=137171"
            | "www.microsoft.com/technet/virtualserver/downloads/vhdspec.mspx"
            | "technet.microsoft.com/en-us/virtualserver/bb676673.aspx" => Some(Self::Vhd),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_known_by_the_addresses_that_tools_write() {
        use DiskFormat::{Qcow2, Raw, Vhd, VmdkSparse, VmdkStream};
        for (uri, wanted) in [
            (
                "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized",
                Some(VmdkStream),
            ),
            ("http://www.vmware.com/specifications/vmdk.html#compressed", Some(VmdkStream)),
            ("http://www.vmware.com/specifications/vmdk.html#sparse", Some(VmdkSparse)),
            ("http://www.vmware.com/specifications/vmdk.html#monolithicFlat", None),
            ("http://www.gnome.org/~markmc/qcow-image-format.html", Some(Qcow2)),
            (DiskFormat::RAW_URI, Some(Raw)),
            ("http://go.microsoft.com/fwlink/?LinkId=137171", Some(Vhd)),
            ("http://unknown", None),
            ("raw", None),
            ("", None),
        ] {
            assert_eq!(DiskFormat::of_uri(uri), wanted, "{uri}");
        }
    }
}
