//! What the choice of the execution provider came to.

use super::Provider;
use super::placement::NodePlacement;
use crate::product_choice::ProductChoice;

/// What the choice of the execution provider came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderReport {
    /// The provider that runs the model: never `auto`.
    pub provider: Provider,
    /// Its device, where more is known than the provider's name.
    pub device: Option<String>,
    /// Why it runs the model.
    pub reason: String,
    /// What the proof that it computes right came to; `None` of the processor, which needs none.
    pub proof: Option<String>,
    /// Better ones that are not available, in the order in which they were tried.
    pub refused: Vec<RefusedProvider>,
    /// Where the graph's nodes run; `None`: all of them on the processor.
    pub placement: Option<NodePlacement>,
    /// The operators chosen for products by their speed, where that was measured: on the processor, unless an instruction set is
    /// forced.
    pub products: Vec<ProductChoice>,
    /// What results depend on beside library and processor: the provider, its options, and a plugin's file.
    pub(crate) identity: String,
}

/// A provider that is not available, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedProvider {
    /// The provider.
    pub provider: Provider,
    /// What is missing or wrong.
    pub fault: String,
}

impl ProviderReport {
    /// The report of a provider that is the only candidate.
    pub fn of(provider: Provider) -> Self {
        Self {
            provider,
            device: None,
            reason: "it is the one that was asked for".to_owned(),
            proof: None,
            refused: Vec::new(),
            placement: None,
            products: Vec::new(),
            identity: provider.as_str().to_owned(),
        }
    }
}
