//! The one place that refuses writes.
//!
//! Whatever changes a platform or an orchestrator takes a [`Permit`], and only [`Access::permit`] gives one. A command
//! that must not write has an `Access` without, so that its writes cannot even be expressed.

/// What a command may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Look only: `plan` and `check`.
    ReadOnly,
    /// Look and change: `run`.
    ReadWrite,
}

/// The right to change something outside.
#[derive(Debug, Clone, Copy)]
pub struct Permit(());

impl Access {
    /// The right to write, where this command has it.
    #[must_use]
    pub fn permit(self) -> Option<Permit> {
        match self {
            Self::ReadOnly => None,
            Self::ReadWrite => Some(Permit(())),
        }
    }
}
