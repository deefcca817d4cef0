//! The paged graph against the library's own schema of `PagedAttention`, which builds without its kernel have as well.

use phi_edge_models::ModelDir;
use prost::Message;
use prost::bytes::Bytes;

use crate::error::one_line;
use crate::isa::CpuResources;
use crate::library::Library;
use crate::onnx_proto::{ModelProto, ValueInfoProto, data_type};
use crate::paged_stand_in::RUNTIME_DOMAIN;
use crate::prepare::page_attention::{BLOCK_TABLE, ROW_STARTS};
use crate::prepare::{Level, Prepare, prepare};
use crate::provider::ExecutionTarget;
use crate::session;

/// The paged graph of the tiny model in the form for CUDA, and its folder, where it is there.
fn paged() -> Option<(Bytes, std::path::PathBuf)> {
    let root = std::env::var_os("PHI_EDGE_FIXTURES").map_or_else(
        || std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures"),
        std::path::PathBuf::from,
    );
    let folder = root.join("phi3-mini-tiny-cuda");
    let model = ModelDir::open(&folder).ok()?;
    let graph: Bytes = std::fs::read(model.decoder_path()).unwrap().into();
    let edited = prepare(&graph, "logits", Prepare::form(Level::Paged), RUNTIME_DOMAIN).unwrap();
    assert!(edited.tables.is_some());
    Some((edited.graph, folder))
}

#[test]
fn the_library_knows_the_operator_and_takes_the_graph_but_for_a_kernel() {
    let (Some(library), Some((graph, folder))) = (Library::for_tests(), paged()) else {
        println!("SKIPPED: the fixture or the library is absent");
        return;
    };
    let refusal = |graph: &Bytes| {
        let mut builder = session::builder_beside_weights(
            &library,
            ExecutionTarget::CPU,
            CpuResources::ONE_THREAD,
            &folder,
        )
        .unwrap();
        one_line(builder.commit_from_memory(graph).map(|_| ()).unwrap_err())
    };
    let whole = refusal(&graph);
    // Version 1.31 casts what the processor has no kernel for to 32 bits before it looks for one.
    let lacks_a_kernel = [
        "NOT_IMPLEMENTED",
        "Could not find an implementation",
        "InsertedPrecisionFreeCast",
    ];
    assert!(
        lacks_a_kernel.iter().any(|reason| whole.contains(reason)),
        "{whole}"
    );
    assert!(whole.contains("PagedAttention"), "{whole}");
    // A table of another type is not what the schema says.
    for input in [ROW_STARTS, BLOCK_TABLE] {
        let mut model = ModelProto::decode(graph.clone()).unwrap();
        let inputs = &mut model.graph.as_mut().unwrap().input;
        let named = inputs.iter_mut().find(|value| value.name == input).unwrap();
        *named = ValueInfoProto::tensor(input, data_type::INT64, &["a"]);
        let refused = refusal(&model.encode_to_vec().into());
        assert!(refused.contains("int64") && refused.contains(input), "{refused}");
    }
}
