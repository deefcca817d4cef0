//! The execution provider in words: which one, why, and which nodes it runs.

use phi_edge_onnx::{NodePlacement, Provider, ProviderReport};

/// The provider that runs the model, and why.
pub(crate) fn chosen(report: &ProviderReport) -> String {
    let device = report.device.as_ref();
    let device = device.map_or_else(String::new, |device| format!(" ({device})"));
    format!("{}{device}: {}", report.provider, why(report))
}

/// Why this provider runs the model, and how many nodes of the graph, without its name and theirs.
pub(crate) fn summary(report: &ProviderReport) -> String {
    match &report.placement {
        Some(NodePlacement { on_cpu }) => format!(
            "{}; nodes of the graph on the processor: {}",
            why(report),
            on_cpu.len()
        ),
        None => why(report),
    }
}

fn why(report: &ProviderReport) -> String {
    match &report.proof {
        Some(proof) => format!("{}; {proof}", report.reason),
        None => report.reason.clone(),
    }
}

/// The providers that are not available, one line each: those that `asked` tried before the one in use.
pub(crate) fn refused(report: &ProviderReport, asked: Provider) -> Vec<String> {
    let line = |provider: Provider, fault: &str| match asked {
        Provider::Auto => format!("{provider} can't be used here: {fault}"),
        _ => format!("{provider} can't be used here, and runtime.fallback takes its place: {fault}"),
    };
    let refused = report.refused.iter();
    refused
        .map(|refused| line(refused.provider, &refused.fault))
        .collect()
}

/// Where the graph's nodes run; `None`: all of them on the processor.
pub(crate) fn nodes(report: &ProviderReport) -> Option<String> {
    let placement = report.placement.as_ref()?;
    let names: Vec<String> = placement.on_cpu.iter().map(ToString::to_string).collect();
    Some(match names.len() {
        0 => format!("all on {}", report.provider),
        count => format!(
            "all on {}, but for {count} on the processor: {}",
            report.provider,
            names.join(", ")
        ),
    })
}

/// Which operators compute the products, by their measured speed; `None`: nothing was measured.
pub(crate) fn products(report: &ProviderReport) -> Option<String> {
    let all = report.products.len();
    let left: Vec<String> = report
        .products
        .iter()
        .filter(|choice| choice.by_library)
        .map(ToString::to_string)
        .collect();
    match (all, left.len()) {
        (0, _) => None,
        (_, 0) => Some(format!(
            "by the custom operator, which is not slower for any of {all} shapes"
        )),
        (_, count) => Some(format!(
            "by ONNX Runtime for {count} of {all} shapes, which it computes faster: {}",
            left.join(", ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use phi_edge_onnx::{GraphNode, ProductChoice, ProductShape, RefusedProvider};

    use super::*;

    #[test]
    fn the_lines_say_which_provider_why_and_which_nodes() {
        let mut report = ProviderReport::of(Provider::Cpu);
        assert_eq!(chosen(&report), "cpu: it is the one that was asked for");
        assert_eq!(nodes(&report), None);
        report.provider = Provider::Cuda;
        report.device = Some("device 1".to_owned());
        report.proof = Some("its results agree with the processor's".to_owned());
        report.refused.push(RefusedProvider {
            provider: Provider::Plugin,
            fault: "no device".to_owned(),
        });
        report.placement = Some(NodePlacement::default());
        assert_eq!(
            chosen(&report),
            "cuda (device 1): it is the one that was asked for; its results agree with the processor's"
        );
        assert_eq!(
            refused(&report, Provider::Auto),
            ["plugin can't be used here: no device"]
        );
        assert!(refused(&report, Provider::Plugin)[0].contains("runtime.fallback"));
        assert_eq!(nodes(&report).as_deref(), Some("all on cuda"));
        if let Some(placement) = &mut report.placement {
            placement.on_cpu.push(GraphNode {
                operator: "Gather".to_owned(),
                name: "/a".to_owned(),
            });
        }
        assert_eq!(
            nodes(&report).as_deref(),
            Some("all on cuda, but for 1 on the processor: Gather /a")
        );
        assert_eq!(
            summary(&report),
            "it is the one that was asked for; its results agree with the processor's; nodes of the graph on the processor: 1"
        );
    }

    #[test]
    fn the_lines_say_which_products_are_left_to_the_library() {
        let mut report = ProviderReport::of(Provider::Cpu);
        assert_eq!(products(&report), None);
        for n in [3072, 9216] {
            report.products.push(ProductChoice {
                shape: ProductShape {
                    k: 3072,
                    n,
                    block: 32,
                    zero_points: n == 9216,
                },
                by_library: false,
                times: "1 row: equal".to_owned(),
            });
        }
        assert_eq!(
            products(&report).as_deref(),
            Some("by the custom operator, which is not slower for any of 2 shapes")
        );
        report.products[1].by_library = true;
        assert_eq!(
            products(&report).as_deref(),
            Some(
                "by ONNX Runtime for 1 of 2 shapes, which it computes faster: \
                 3072 x 9216 in blocks of 32 with zero points (1 row: equal)"
            )
        );
    }
}
