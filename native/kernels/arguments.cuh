// The one parameter of each kernel: blittable structs, the same in C#. Fields are ordered so that
// nothing is padded by the compiler; pointers are device addresses of 8 bytes, `int` is 32 bits,
// `long long` 64. All positions are global positions of the key axis. Scores, maxima and
// logarithms are in natural units (base e); finish_states alone may give base 2 to the caller.
#pragma once

// A state of attention over some keys, as one block of fp32 in device memory:
//
//   output  [rows, value_dim] row-major, normalised
//   max     [rows] largest score (scaled, capped, biased); -inf where no key was seen
//   sum     [rows] sum of e^(score - max); 0 where no key was seen
//
// rows = batch * query_heads * query_count, in that order: a row is (batch, head, query).
// A state holds rows * (value_dim + 2) floats.

// One page of keys: key n of it stands at position
//   run_first + (run_offset + n) / run_block * run_stride + (run_offset + n) % run_block.
// Positions ascend with n. 40 bytes.
struct page_entry {
  long long key_offset;    // elements from `contents` to keys [kv_heads][capacity][head_dim]
  long long value_offset;  // elements from `contents` to values [kv_heads][capacity][value_stride]
  int run_first;           // position of the run's first key
  int run_offset;          // index in the run of the page's first key
  int run_block;           // neighbouring keys in a block of the run, at least 1
  int run_stride;          // positions from block to block, at least run_block
  int count;               // keys of the page: the first of each head, as far as the row goes
  int capacity;            // keys that each head has room for, at least count
};

// Where one query stands among the keys. 16 bytes.
struct query_place {
  int first;     // its sequence's first key
  int end;       // one past its sequence's last key
  int position;  // what causal, window, chunks and ALiBi count from
  int sequence;  // the batch row, or the packed sequence
};

// attend_tensor, attend_prefill and attend_plain: partial attention of all query rows over ranges
// of pages. Pointers marked "or null" switch an option off. 248 bytes.
struct attend_arguments {
  const float* queries;       // [batch, query_heads, query_count, head_dim] unscaled
  const void* contents;       // keys and values, elements of the kernel's storage type
  const page_entry* pages;    // pages of all batch rows
  const int* page_ranges;     // [batch + 1] pages of row b: page_ranges[b] <= p < page_ranges[b+1]
  float* states;              // `splits` states, state_stride floats apart; written whole
  const int* query_indices;   // [query_count] index of each query in its whole sequence
  const int* key_lengths;     // [batch] keys of each row, or null: key_length
  const int* query_lengths;   // [batch] queries of each row, or null: query_length
  const int* key_starts;      // [batch] first key of each row, or null: 0
  const query_place* places;  // [query_length] of packed sequences, or null
  const int* query_depths;    // [1 or batch, query_length] of token trees, or null: 0, 1, 2, ...
  const float* alibi_slopes;  // [query_heads] or [sequences, query_heads], or null
  const int* dfs_start;       // [batch, query_length], or null; with dfs_end
  const int* dfs_end;         // [batch, key_length], or null
  const int* dfs_peaks;       // [batch, ceil(key_length / 64)] largest dfs_end of 64 keys, or null
  const unsigned char* tail_mask;  // [batch, query_length, tail_mask_length], 0 hides, or null
  const float* tail_bias;          // [1 or batch, query_length, tail_bias_length], or null
  const float* scales;             // [2, kv_heads] of stored keys, then of values, or null: 1
  long long state_stride;          // floats from split to split
  int kv_heads;
  int group;                // query heads of each KV head
  int query_count;          // queries of this call for each batch row and head
  int query_length;         // queries of the whole call (of the longest row)
  int key_length;           // keys of the whole call (of the longest row), over all ranks
  int head_dim;             // elements of a query and a key
  int value_dim;            // elements of a value and an output
  int value_stride;         // elements from value to value: value_dim, or head_dim inside keys
  int splits;               // page ranges: split s takes the batch row's pages
  int first_page;           //   first_page + s * pages_per_split up to, not including,
  int pages_per_split;      //   first_page + (s + 1) * pages_per_split; 0: ceil(pages / splits)
  int causal;               // 1: key j is seen when j <= i + shift; chunks imply it
  int window_left;          // j >= i + shift - window_left; negative: no bound
  int window_right;         // j <= i + shift + window_right; negative: no bound
  int alibi_per_batch;      // 1: alibi_slopes is [sequences, query_heads]
  int tail_mask_length;     // keys that the tail mask covers
  int tail_bias_length;     // keys that the tail bias covers
  int tail_bias_per_batch;  // 1: tail_bias is [batch, ...]
  float scale;              // factor on query . key, rounded to fp32,
  float scale_rest;         //   and what the rounding left: float(scale_in_double - scale)
  float softcap;            // score := softcap * tanh(score / softcap); 0 is off
  int depths_per_batch;     // 1: query_depths is [batch, ...]
  int local_chunk;          // positions of a chunk outside of which a query sees nothing; 0: none
  int chunk_origin;         // a multiple of local_chunk, at least query_length; 0 without chunks
};

// How large the numbers of one page and KV head are; NaN or inf when one is not finite.
struct page_limits {
  float largest_key_norm;  // Euclidean
  float largest_value;     // magnitude
};

// attend_precise: the rows that the kernel before it was not exact enough for, computed again in
// double precision. 288 bytes.
struct precise_arguments {
  attend_arguments attend;    // the call, as the fast kernel had it; its states are overwritten
  const page_limits* limits;  // [slots, kv_heads]
  const int* slots;           // [pages] row of each page in the limits
  double scale;               // factor on query . key
  double score_limit;         // fp32 is exact enough for |scale| |query| |key| + bias up to here
  float value_limit;          // and for values up to here
  int by_row;                 // 1: of a page beyond its limits the keys decide that the row sees
};

// Where a token's rows go, counted from `contents`. 24 bytes.
struct token_place {
  long long key_offset;    // the key's row of KV head 0; negative: another rank owns the token
  long long value_offset;  // the value's row of KV head 0
  int slot;                // row of the token's page in the limits
  int unused;              // 0
};

// append_tokens: rotates keys, stores keys and values in the kernel's storage type. 96 bytes.
struct append_arguments {
  const float* keys;    // [tokens, kv_heads, head_dim]
  const float* values;  // [tokens, kv_heads, value_dim], or null: the first of the stored keys
  const token_place* places;  // [tokens]
  const float* cosine;        // [tokens, rotary_pairs]
  const float* sine;          // [tokens, rotary_pairs]
  const float* scales;        // [2, kv_heads] of stored keys, then of values, or null: 1
  void* contents;             // of the cache
  page_limits* limits;        // [slots, kv_heads]; raised
  int tokens;
  int kv_heads;
  int head_dim;
  int value_dim;
  int capacity;        // rows from head to head
  int rotary_pairs;    // pairs of dimensions that turn, the first of a key; 0: none
  int is_interleaved;  // 1: a pair is 2i and 2i + 1; 0: i and i + rotary_pairs
  int unused;          // 0
};

// rotate_queries: takes queries of tokens into the order of heads, rotated. 56 bytes.
struct rotate_arguments {
  const float* from;    // [batch, query_length, query_heads, head_dim]
  float* into;          // [batch, query_heads, query_length, head_dim]
  const float* cosine;  // [batch, query_length, rotary_pairs]
  const float* sine;    // the same
  int rows;             // batch * query_length * query_heads
  int query_heads;
  int query_length;
  int head_dim;
  int rotary_pairs;    // as in append_arguments
  int is_interleaved;  // as in append_arguments
};

// merge_states: folds `count` states into one, in ascending order. 48 bytes.
struct merge_arguments {
  float* into;            // a state; changed
  const float* from;      // `count` states, `from_stride` floats apart
  long long from_stride;  // floats from state to state
  int rows;
  int value_dim;
  int count;      // 0 and more
  int unused[3];  // 0
};

// One step of fold_states: state `into` takes in state `from`; both count from `states` on.
struct fold_step {
  int into;
  int from;
};

// fold_states: a list of folds among states that lie at one stride, done in order. 40 bytes.
struct fold_arguments {
  float* states;           // changed
  const fold_step* steps;  // [count]
  long long state_stride;  // floats from state to state
  int rows;
  int value_dim;
  int count;   // 0 and more
  int unused;  // 0
};

// weigh: numerator = output * w, denominator = w, with w = unit * sum * e^(max - top). 48 bytes.
struct weigh_arguments {
  const float* state;
  const float* top;    // [rows] the largest max of all ranks
  float* numerator;    // [rows, value_dim]
  float* denominator;  // [rows]
  int rows;
  int value_dim;
  float unit;  // a power of two
  int unused;  // 0
};

// unweigh: output = numerator / denominator, max = top, sum = denominator / unit; the identity
// where the denominator is 0. 48 bytes.
struct unweigh_arguments {
  const float* top;
  const float* numerator;
  const float* denominator;
  float* state;
  int rows;
  int value_dim;
  float unit;
  int unused;  // 0
};

// clear_state: makes a state the identity (0, -inf, 0). 16 bytes.
struct clear_arguments {
  float* state;
  int rows;
  int value_dim;
};

// finish_states: the caller's result of a final state. 72 bytes.
struct finish_arguments {
  const float* state;
  float* output;             // [batch, count, query_heads, value_dim]
  float* lse;                // [rows] log-sum-exp, sinks included
  const float* sinks;        // [query_heads], or null
  const int* query_indices;  // [count] index of each query in its sequence
  const int* query_lengths;  // [batch], or null: as many as there are
  int rows;                  // batch * query_heads * count
  int query_heads;
  int count;
  int value_dim;
  int is_base_two;  // 1: lse is a logarithm to base 2; 0: natural
  int unused;       // 0
};

// convert: elements of one type into as many of another. 24 bytes.
struct convert_arguments {
  const void* from;
  void* to;
  long long count;
};

static_assert(sizeof(page_entry) == 40 && sizeof(attend_arguments) == 248 &&
                  sizeof(page_limits) == 8 && sizeof(precise_arguments) == 288 &&
                  sizeof(token_place) == 24 && sizeof(append_arguments) == 96 &&
                  sizeof(rotate_arguments) == 56 && sizeof(merge_arguments) == 48 &&
                  sizeof(fold_arguments) == 40 && sizeof(weigh_arguments) == 48 &&
                  sizeof(unweigh_arguments) == 48 && sizeof(clear_arguments) == 16 &&
                  sizeof(finish_arguments) == 72 && sizeof(convert_arguments) == 24,
              "the host code has the same structs");

// Of the probes in probes.cu, each with its own number of words.
struct probe_arguments {
  const void* in;  // [64] 16 bytes each, for probe_copy_async
  unsigned* out;
};

// Of the kernels in ceilings.cu.
struct ceiling_arguments {
  const void* in;   // [count] 16 bytes each, of read_stream
  unsigned* out;    // a word for each thread of the grid
  long long count;  // words of 16 bytes, or steps
};
