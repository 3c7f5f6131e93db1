//! The identity of one stay of a VM at a site.

use std::fmt;
use std::str::FromStr;

use model::{Epoch, VmId};

/// One stay of a VM at this site: its process is found again by it.
///
/// Prints as `<vm>-<epoch>`, which is also the name of its runtime folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instance {
    /// The VM.
    pub vm: VmId,
    /// The epoch in which this site owns it.
    pub epoch: Epoch,
}

/// A text that is not an instance.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an instance is a VM id, '-' and an epoch without leading zeros, got {0:?}")]
pub struct InstanceError(String);

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.vm, self.epoch)
    }
}

impl FromStr for Instance {
    type Err = InstanceError;

    fn from_str(text: &str) -> Result<Self, InstanceError> {
        let error = || InstanceError(text.chars().take(80).collect());
        let (vm, epoch) = text.split_once('-').ok_or_else(error)?;
        let parsed = Self {
            vm: vm.parse().map_err(|_| error())?,
            epoch: Epoch(epoch.parse().map_err(|_| error())?),
        };
        // One instance has one name: `+7` and `007` parse as numbers but are other folders.
        (parsed.to_string() == text).then_some(parsed).ok_or_else(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_reads_back_from_its_text_and_from_no_other() {
        let instance = Instance { vm: VmId([0xab; 16]), epoch: Epoch(70) };
        let text = instance.to_string();
        assert_eq!(text.parse(), Ok(instance));
        let vm = instance.vm;
        for bad in ["", "-", &format!("{vm}"), &format!("{vm}-"), &format!("{vm}-+7")] {
            assert!(bad.parse::<Instance>().is_err(), "{bad:?} was taken");
        }
        for bad in
            [format!("{vm}-007"), format!("{vm}-7 "), format!("{vm}-7-7"), format!("x{text}")]
        {
            assert!(bad.parse::<Instance>().is_err(), "{bad:?} was taken");
        }
    }
}
