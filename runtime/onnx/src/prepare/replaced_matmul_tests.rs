//! The operator inside a session, beside ONNX Runtime's own.

use ort::session::Session;
use ort::value::Tensor;
use prost::Message;
use prost::bytes::Bytes;

use crate::custom_operators::{self, domain};
use crate::isa::Isa;
use crate::library::Library;
use crate::matmul::OPERATOR;
use crate::onnx_proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto,
    data_type,
};
use crate::paged_stand_in::RUNTIME_DOMAIN;
use crate::prepare::{Level, Prepare, prepare};
use crate::verify_edits::reference::{reference, row_values};

const K: usize = 200;
const N: usize = 70;
const BLOCK: usize = 32;
const BLOCKS: usize = K.div_ceil(BLOCK);

fn held(name: &str, dims: &[usize], data_type: i32, raw_data: Vec<u8>) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: dims.iter().map(|dim| i64::try_from(*dim).unwrap()).collect(),
        data_type,
        raw_data: raw_data.into(),
        ..TensorProto::default()
    }
}

/// A graph of one `MatMulNBits`, with zero points or without.
fn graph(zeros: bool) -> Bytes {
    let mut state = 7u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let weights = (0..N * BLOCKS * BLOCK / 2).map(|_| random()).collect();
    let scales: Vec<u8> = (0..N * BLOCKS)
        .flat_map(|_| (0.01 + f32::from(random()) / 1e4).to_le_bytes())
        .collect();
    let mut initializer = vec![
        held("w", &[N, BLOCKS, BLOCK / 2], data_type::UINT8, weights),
        held("s", &[N, BLOCKS], data_type::FLOAT, scales),
    ];
    let mut inputs = vec!["x", "w", "s"];
    if zeros {
        let zeros = (0..N * BLOCKS.div_ceil(2)).map(|_| random()).collect();
        initializer.push(held("z", &[N, BLOCKS.div_ceil(2)], data_type::UINT8, zeros));
        inputs.push("z");
    }
    let mut node = NodeProto::new("MatMulNBits", &inputs, "y");
    node.domain = "com.microsoft".into();
    let attributes = [
        ("K", K),
        ("N", N),
        ("bits", 4),
        ("block_size", BLOCK),
        ("accuracy_level", 4),
    ];
    node.attribute = attributes
        .map(|(name, value)| AttributeProto::int(name, i64::try_from(value).unwrap()))
        .into();
    let opset = [("", 21), ("com.microsoft", 1)].map(|(domain, version)| OperatorSetIdProto {
        domain: domain.into(),
        version,
    });
    let graph = GraphProto {
        node: vec![node],
        name: "main".into(),
        initializer,
        input: vec![ValueInfoProto::tensor(
            "x",
            data_type::FLOAT,
            &["batch", "rows", "k"],
        )],
        output: vec![ValueInfoProto::tensor(
            "y",
            data_type::FLOAT,
            &["batch", "rows", "n"],
        )],
        ..GraphProto::default()
    };
    let model = ModelProto {
        ir_version: 10,
        graph: Some(graph),
        opset_import: opset.into(),
        ..ModelProto::default()
    };
    model.encode_to_vec().into()
}

fn run(library: &Library, graph: &[u8], dims: [usize; 3], input: &[f32]) -> (Vec<i64>, Vec<f32>) {
    let mut builder = Session::builder(library.environment())
        .unwrap()
        .with_intra_threads(2)
        .unwrap()
        .with_operators(domain(Isa::detect().unwrap_or(Isa::Scalar), 2).unwrap())
        .unwrap();
    let mut session = custom_operators::commit(|| builder.commit_from_memory(graph)).unwrap();
    let input = Tensor::from_array((dims, input.to_vec())).unwrap();
    let outputs = session.run(ort::inputs!["x" => input]).unwrap();
    let (shape, values) = outputs["y"].try_extract_tensor::<f32>().unwrap();
    (shape.to_vec(), values.to_vec())
}

#[test]
fn the_operator_gives_what_the_librarys_own_gives() {
    let Some(library) = Library::for_tests() else {
        return;
    };
    for zeros in [false, true] {
        let plain = graph(zeros);
        let edited = prepare(&plain, "y", "matmul".parse().unwrap(), RUNTIME_DOMAIN)
            .unwrap()
            .graph;
        let node = &ModelProto::decode(edited.clone()).unwrap().graph.unwrap().node[0];
        assert_eq!(
            (node.op_type.as_str(), node.input.len()),
            (OPERATOR, if zeros { 4 } else { 3 })
        );
        assert!(prepare(&plain, "y", Prepare::form(Level::Rope), RUNTIME_DOMAIN).is_none());
        for dims in [[1, 1, K], [1, 2, K], [3, 1, K], [2, 11, K], [1, 0, K]] {
            // Each row begins with a block of the values.
            let padded = K.next_multiple_of(BLOCK);
            let values = row_values(dims[0] * dims[1] * padded);
            let rows = values.chunks(padded).map(|row| &row[..K]);
            let input: Vec<f32> = rows.flatten().copied().collect();
            let (expected_shape, expected) = run(&library, &reference(&plain), dims, &input);
            let (shape, got) = run(&library, &edited, dims, &input);
            assert_eq!(shape, expected_shape);
            let largest = expected.iter().fold(0f32, |most, value| most.max(value.abs()));
            for (got, expected) in got.iter().zip(&expected) {
                // A value halfway between two whole ones may be rounded either way.
                let near = (got - expected).abs() <= 2e-3 * largest;
                assert!(near, "{dims:?}, zero points {zeros}: {got} is not {expected}");
            }
        }
    }
}
