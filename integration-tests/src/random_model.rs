//! A model directory with random weights: the right shapes and a real tokenizer, but nothing learned. For
//! tests of everything that moves a model without asking what it knows.

use std::path::Path;

use nsparse_core::model_dir::{Activation, ModelFacts};
use nsparse_core::{DocumentTemplate, IdfTable, Result, TextTokenizer, files};
use nsparse_encoder::{BertConfig, BertMlm};

/// Words that the vocabulary has whole; all others fall into characters.
const WORDS: [&str; 24] = [
    "the", "of", "with", "search", "engine", "index", "query", "document", "weight", "token", "sparse", "vector",
    "node", "cluster", "field", "score", "rank", "word", "text", "model", "answer", "memory", "disk", "shard",
];

/// Ids that `nsparse.json` names as dead.
const DEAD: [u32; 2] = [40, 41];

/// What a random model is made of.
#[derive(Debug, Clone)]
pub struct Shape {
    /// The network.
    pub config: BertConfig,
    /// Tokens of a document that are read.
    pub max_tokens: usize,
    /// How a pooled logit becomes a weight.
    pub activation: Activation,
    /// The decoder's bias: the lower, the sparser.
    pub bias: f32,
}

impl Shape {
    /// all-MiniLM-L6-v2's: 6 layers of 384, 30,522 vocabulary entries, 512 tokens.
    pub fn minilm() -> Self {
        let config = config(30_522, 384, 6, 12, 1536, 512);
        Self { config, max_tokens: 512, activation: Activation::Splade, bias: -2.6 }
    }

    /// A small one: 2 layers of 16, 300 vocabulary entries, 32 of 40 positions.
    pub fn small() -> Self {
        let config = config(300, 16, 2, 2, 32, 40);
        Self { config, max_tokens: 32, activation: Activation::Splade, bias: -0.3 }
    }
}

fn config(v: usize, h: usize, layers: usize, heads: usize, inner: usize, positions: usize) -> BertConfig {
    let value = serde_json::json!({
        "model_type": "bert", "vocab_size": v, "hidden_size": h, "num_hidden_layers": layers,
        "num_attention_heads": heads, "intermediate_size": inner, "hidden_act": "gelu",
        "max_position_embeddings": positions, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
        "initializer_range": 0.05,
    });
    serde_json::from_value(value).expect("every key that the config needs is there")
}

/// Writes a model directory: `config.json`, `model.safetensors`, `tokenizer.json`, `idf.json`, `nsparse.json`.
/// The same shape and seed give the same files.
///
/// # Errors
/// If a file cannot be written.
pub fn write(folder: &Path, shape: &Shape, seed: u64) -> std::result::Result<(), nsparse_encoder::Error> {
    write_with(folder, shape, seed, &tokenizer(shape.config.vocab_size)?)
}

/// As [`write()`], with a tokenizer at hand; it has as many entries as the shape.
///
/// # Errors
/// If a file cannot be written.
pub fn write_with(
    folder: &Path,
    shape: &Shape,
    seed: u64,
    tokenizer: &TextTokenizer,
) -> std::result::Result<(), nsparse_encoder::Error> {
    let mut model = BertMlm::random(shape.config.clone(), seed);
    // Norms and biases differ from 1 and 0, so that a forgotten one shows.
    let mut noise = Noise(seed);
    for spec in model.parameters.specs().to_vec() {
        let centre = match spec.name.as_str() {
            "cls.predictions.bias" => shape.bias,
            name if name.contains("LayerNorm") => f32::from(name.ends_with("weight")),
            _ if spec.shape.len() == 1 => 0.0,
            _ => continue,
        };
        for value in model.parameters.get_mut(&spec.name)? {
            *value = centre + 0.1 * noise.next();
        }
    }
    // What has to be zeroed would be the heaviest of all.
    let bias = model.parameters.get_mut("cls.predictions.bias")?;
    for id in tokenizer.weightless().into_iter().chain(DEAD) {
        bias[id as usize] = 3.0;
    }
    std::fs::create_dir_all(folder).map_err(|e| nsparse_core::Error::io("create", folder, e))?;
    model.save(folder)?;
    files::write_bytes(&folder.join("tokenizer.json"), tokenizer.to_json(128)?.as_bytes())?;
    let special = &tokenizer.special().all;
    let idf = (0..tokenizer.vocabulary().len() as u32)
        .map(|id| if special.contains(&id) { 0.0 } else { 1.0 + (id % 97) as f32 / 16.0 })
        .collect();
    IdfTable::from_weights(idf).save(&folder.join("idf.json"), tokenizer)?;
    let mut facts = ModelFacts::new(shape.activation, shape.max_tokens, DocumentTemplate::default());
    facts.dead_ids = DEAD.to_vec();
    files::write_json(&folder.join("nsparse.json"), &facts)?;
    Ok(())
}

/// An uncased WordPiece tokenizer of `size` entries: special tokens, two `[unusedN]`, printable ASCII and some
/// Hangul as characters, whole words, and made-up words `w0`, `w1`, … for the rest.
fn tokenizer(size: usize) -> Result<TextTokenizer> {
    let mut entries: Vec<String> =
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]", "##."].map(str::to_owned).to_vec();
    let characters = (b'!'..=b'~').map(char::from).filter(|c| !c.is_ascii_uppercase());
    // BERT's normaliser takes Hangul syllables apart into letters.
    let hangul = ['ᄀ', 'ᄂ', 'ᄃ', 'ᄉ', 'ᄋ', 'ᅡ', 'ᅥ', 'ᅩ', 'ᅵ', 'ᆨ', 'ᆫ'];
    for c in characters.chain(hangul) {
        entries.push(c.to_string());
        if c.is_alphanumeric() {
            entries.push(format!("##{c}"));
        }
    }
    entries.extend(WORDS.map(str::to_owned));
    let made_up = size.saturating_sub(entries.len());
    entries.extend((0..made_up).map(|n| format!("w{n}x")));
    let vocabulary: serde_json::Map<String, serde_json::Value> =
        entries.into_iter().enumerate().map(|(id, token)| (token, id.into())).collect();
    let special = |content: &str, id: u32| {
        serde_json::json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    };
    let file = serde_json::json!({
        "version": "1.0",
        // Baked in by whoever made the file: an export has to put its own in place.
        "truncation": { "direction": "Right", "max_length": 128, "strategy": "LongestFirst", "stride": 0 },
        "padding": {
            "strategy": { "Fixed": 128 }, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "[PAD]",
        },
        "added_tokens": [
            special("[PAD]", 0), special("[UNK]", 1), special("[CLS]", 2), special("[SEP]", 3), special("[MASK]", 4),
        ],
        "normalizer": {
            "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
            "lowercase": true,
        },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                { "SpecialToken": { "id": "[CLS]", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } },
                { "SpecialToken": { "id": "[SEP]", "type_id": 0 } },
            ],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": {
                "[CLS]": { "id": "[CLS]", "ids": [2], "tokens": ["[CLS]"] },
                "[SEP]": { "id": "[SEP]", "ids": [3], "tokens": ["[SEP]"] },
            },
        },
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary,
        },
    });
    TextTokenizer::from_bytes(file.to_string().as_bytes())
}

/// Fifty texts: nothing, 600 words, emoji, Korean, dots, one word, odd spaces, and sentences of all lengths.
pub fn fifty_texts() -> Vec<String> {
    let mut noise = Noise(7);
    let mut sentence = |length: usize| {
        let word = |noise: &mut Noise| match noise.below(3) {
            0 => format!("w{}x", noise.below(20_000)),
            _ => WORDS[noise.below(WORDS.len())].to_owned(),
        };
        (0..length).map(|_| word(&mut noise)).collect::<Vec<_>>().join(" ")
    };
    let mut texts: Vec<String> = [
        "",
        " ",
        "search",
        "The engine of 2.16.0 indexes a.b.c ... and ends with dots...",
        "....",
        "🔎🔎 search 👩‍💻 engine 🇰🇷",
        "검색 엔진은 문서를 색인한다",
        "나는 search 노드 engine 다",
        "[CLS] [SEP] [MASK] [unused0] in a text",
        "tab\tnew\nline\u{a0}space\u{0}null",
        "ÀÉÎÕÜ ñ ß ŒUVRE",
        "supercalifragilisticexpialidocious-pneumonoultramicroscopicsilicovolcanoconiosis",
        "document document document document",
    ]
    .map(str::to_owned)
    .to_vec();
    texts.push(sentence(600));
    while texts.len() < 50 {
        let length = 1 + texts.len() * texts.len() % 180;
        texts.push(sentence(length));
    }
    texts
}

/// `SplitMix64` (Steele, Lea, Flood 2014), enough for weights and words.
#[derive(Debug)]
pub struct Noise(pub u64);

impl Noise {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [-1, 1).
    fn next(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }
}
