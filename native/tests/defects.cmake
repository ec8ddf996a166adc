# Defects that the tests must find. Each replaces one text of one kernel source, which must occur
# there exactly once, in a copy of the kernels: the kernels themselves know nothing of defects.
#
#   defect(name file build finding from to)   build: plain, address or thread
#
# `finding` is what the test's output must say.

set(defects)
set(wrong "row [0-9]+: (element|sum|max)")
set(race "WARNING: ThreadSanitizer: data race")

macro(defect name file build finding from to)
  list(APPEND defects ${name})
  set(${name}_file "${file}")
  set(${name}_build "${build}")
  set(${name}_finding "${finding}")
  set(${name}_from "${from}")
  set(${name}_to "${to}")
endmacro()

function(plant_defect name source target)
  file(GLOB files ${source}/*.cu ${source}/*.cuh)
  foreach(file ${files})
    get_filename_component(base ${file} NAME)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${file})
    if(NOT base STREQUAL ${name}_file)
      configure_file(${file} ${target}/${base} COPYONLY)
      continue()
    endif()
    file(READ ${file} text)
    string(FIND "${text}" "${${name}_from}" first)
    string(FIND "${text}" "${${name}_from}" last REVERSE)
    if(first EQUAL -1 OR NOT first EQUAL last)
      message(FATAL_ERROR "Defect ${name}: its text must occur exactly once in ${base}; adapt defects.cmake to the kernel.")
    endif()
    string(REPLACE "${${name}_from}" "${${name}_to}" text "${text}")
    file(CONFIGURE OUTPUT ${target}/${base} CONTENT "${text}" @ONLY)
  endforeach()
endfunction()

# ---- attend_tensor: barriers and copies ----
defect(no_arrival_barrier attend_tensor.cu plain ${wrong}
  "__syncthreads();  // tile t has arrived" "// tile t has arrived")
defect(no_arrival_barrier_is_a_race attend_tensor.cu thread ${race}
  "__syncthreads();  // tile t has arrived" "// tile t has arrived")
defect(no_copy_wait attend_tensor.cu plain "(${wrong}|a thread ends with an asynchronous copy under way)"
  "copy_async_wait<stages - 2>();" "")
defect(waits_for_one_too_few attend_tensor.cu plain "(${wrong}|a thread ends with an asynchronous copy under way)"
  "copy_async_wait<stages - 2>()" "copy_async_wait<stages - 1>()")
defect(refills_the_stage_in_use attend_tensor.cu plain ${wrong}
  "fetch(ahead, (t + stages - 1) % stages)" "fetch(ahead, t % stages)")
defect(no_barrier_after_maxima attend_tensor.cu plain ${wrong}
  "__syncthreads();  // the maxima of all keys" "// the maxima of all keys")
defect(no_barrier_after_weights attend_tensor.cu plain ${wrong}
  "__syncthreads();  // the weights of all keys" "// the weights of all keys")
defect(no_barrier_after_weights_is_a_race attend_tensor.cu thread ${race}
  "__syncthreads();  // the weights of all keys" "// the weights of all keys")
defect(sums_meet_weights_is_a_race attend_tensor.cu thread ${race}
  "__syncthreads();  // no warp reads the weights of the last tile" "// no warp reads the weights of the last tile")
defect(no_barrier_after_sums attend_tensor.cu plain ${wrong}
  "__syncthreads();  // the sums of all warps" "// the sums of all warps")
defect(a_lane_skips_a_shuffle attend_tensor.cu plain "(lanes of a warp meet at different operations|deadlock: threads wait for .* shuffle at)"
  "top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], 1))"
  "if (lane != 5) top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], 1))")

# ---- attend_tensor: shared memory ----
defect(no_swizzle_on_values attend_tensor.cu plain ${wrong}
  "values + tile_offset<element, value_columns>(key, chunk)"
  "values + key * value_columns + chunk * chunk_size<element>")
defect(no_swizzle_at_all tensor_tiles.cuh plain "0 failed in .* [1-9][0-9]* conflicts"
  "return row * columns + swizzled * size" "return row * columns + (swizzled - swizzled + chunk) * size")
defect(no_padding_of_queries tensor_tiles.cuh address "heap-(buffer-overflow|use-after-free)"
  "const int dim = first + r < row_count ? a.head_dim : 0" "const int dim = first + r < row_count + rows ? a.head_dim : 0")

# ---- attend_tensor: keys and semantics ----
defect(reads_a_key_past_the_end tensor_tiles.cuh address "heap-buffer-overflow"
  "key < walk.seen.end;" "key <= walk.seen.end;")
defect(reads_absent_keys tensor_tiles.cuh plain ${wrong}
  "key < walk.seen.end;" "key < walk.seen.end + 1;")
defect(weights_of_base_two tensor_tiles.cuh plain ${wrong}
  "constexpr float log2_e = 1.4426950408889634f" "constexpr float log2_e = 1.f")
defect(no_correction_of_sums attend_tensor.cu plain ${wrong}
  "sum[h][q] = sum[h][q] * correction[h] + total" "sum[h][q] += total")
defect(heads_are_swapped attend_tensor.cu plain ${wrong}
  "const size_t head = size_t(kv_head) * page.capacity" "const size_t head = size_t(a.kv_heads - 1 - kv_head) * page.capacity")
defect(heads_lie_count_apart attend_tensor.cu plain ${wrong}
  "const size_t head = size_t(kv_head) * page.capacity" "const size_t head = size_t(kv_head) * page.count")
defect(causal_is_off_by_one visibility.cuh plain ${wrong}
  "end = min(end, position + 1)" "end = min(end, position + 2)")
set(chunks "chunks[^:]*: ${wrong}")
defect(chunks_are_ignored visibility.cuh plain "${chunks}"
  "if (a.local_chunk > 0) {\n    first = max" "if (a.local_chunk < 0) {\n    first = max")
defect(chunks_are_a_key_longer visibility.cuh plain "${chunks}"
  "% unsigned(a.local_chunk)" "% unsigned(a.local_chunk + 1)")
defect(chunks_begin_a_key_late visibility.cuh plain "${chunks}"
  "first = max(first, position - behind_chunk_start" "first = max(first, position + 1 - behind_chunk_start")
defect(chunks_count_places_of_the_row visibility.cuh plain "${chunks}"
  "unsigned(position - sequence_first) +" "unsigned(position) +")
defect(chunks_count_queries_of_the_call visibility.cuh plain "${chunks}"
  "behind_chunk_start(a, place.position, place.first)" "behind_chunk_start(a, row.index, 0)")
defect(chunks_forget_the_nodes_of_a_tree visibility.cuh plain "query depths in ${chunks}"
  "if (behind > behind_chunk_start(a, row.position, first)) return false" "if (first < 0) return false")
defect(chunks_before_the_first_key_are_those_behind visibility.cuh plain "query depths in ${chunks}"
  "unsigned(position - sequence_first) +" "unsigned(position < sequence_first ? 0 : position - sequence_first) +")
defect(drops_a_tile visibility.cuh plain ${wrong}
  "key = seen.first / tile_keys * tile_keys" "key = (seen.first / tile_keys + (page % 3 == 2)) * tile_keys")
defect(tiles_start_where_rows_begin visibility.cuh plain "has other bits alone"
  "key = seen.first / tile_keys * tile_keys" "key = seen.first")
defect(positions_ignore_the_stride visibility.cuh plain ${wrong}
  "index / page.run_block * page.run_stride" "index / page.run_block * page.run_block")

# ---- Pages that the kernel deals to its splits ----
set(dealt "pages are dealt to the splits, [^:]*: ${wrong}")
defect(dealing_drops_a_page visibility.cuh plain "${dealt}"
  "(pages + a.splits - 1) / a.splits" "pages / a.splits")
defect(dealing_gives_a_page_twice visibility.cuh plain "${dealt}"
  "min(first + pages_per_split_of(a, batch)," "min(first + pages_per_split_of(a, batch) + (a.pages_per_split == 0),")

# ---- attend_prefill: barriers and copies ----
defect(prefill_keys_are_not_waited_for attend_prefill.cu plain "(${wrong}|a thread ends with an asynchronous copy under way)"
  "copy_async_wait<0>();\n    __syncthreads();  // the keys" "__syncthreads();  // the keys")
defect(prefill_waits_for_one_value_too_few attend_prefill.cu plain "(${wrong}|a thread ends with an asynchronous copy under way)"
  "copy_async_wait<0>();\n    __syncthreads();  // the values" "copy_async_wait<1>();\n    __syncthreads();  // the values")
defect(prefill_no_barrier_before_scores attend_prefill.cu plain ${wrong}
  "__syncthreads();  // the keys have arrived" "// the keys have arrived")
defect(prefill_no_barrier_before_values attend_prefill.cu thread ${race}
  "__syncthreads();  // the values have arrived" "// the values have arrived")
defect(prefill_intervals_are_not_waited_for attend_prefill.cu thread ${race}
  "__syncwarp();  // every lane reads the intervals" "// every lane reads the intervals")

# ---- attend_prefill: shared memory ----
defect(prefill_lost_swizzle attend_prefill.cu plain ${wrong}
  "keys + (key_place ^ d * 16)" "keys + (key_place + d * 16)")
defect(prefill_reads_a_key_past_the_end tensor_tiles.cuh address "heap-buffer-overflow"
  "walk.key + tile_keys <= walk.seen.end" "walk.key + tile_keys <= walk.seen.end + 1")

# ---- attend_prefill: tiles, rows and semantics ----
defect(prefill_loads_a_tile_too_many visibility.cuh plain "copies instead of"
  "hull.end = max(hull.end, own.end)" "hull.end = max(hull.end, own.end + 1)")
defect(prefill_multiplies_a_tile_too_many attend_prefill.cu plain "matrix loads instead of"
  "tile.first_place < sight.any.end" "tile.first_place < sight.any.end + 1")
defect(prefill_passes_over_a_tile_too_many attend_prefill.cu plain ${wrong}
  "tile.first_place < sight.any.end" "tile.last_place < sight.any.end")
defect(prefill_sees_a_tile_too_early_whole attend_prefill.cu plain ${wrong}
  "tile.last_place < sight.all.end" "tile.last_place <= sight.all.end")
defect(prefill_rules_begin_late attend_prefill.cu plain ${wrong}
  "tile.last_place >= sight.all.rules" "tile.first_place >= sight.all.rules")
defect(prefill_forgets_a_correction attend_prefill.cu plain ${wrong}
  "is_corrected |= peak[m][h] != top" "is_corrected |= peak[m][h] < top && m == 0")
defect(prefill_mixes_queries attend_prefill.cu plain ${wrong}
  "return head_row + number_of(row)" "return head_row + place.first_row + row")
defect(prefill_takes_heads_twice attend_prefill.cu plain ${wrong}
  "first_head + rest % width" "rest % width")

# ---- attend_tensor: f8e4m3 ----
defect(narrow_queries_keep_their_order tensor_tiles.cuh plain "tensor<float8_e4m3.*${wrong}"
  "are_keys_narrow ? i / 16 * 16" "are_keys_narrow && i < 0 ? i / 16 * 16")
defect(narrow_values_swap_even_and_odd attend_tensor.cu plain "tensor<float8_e4m3.*${wrong}"
  "place * 2 + n % 2" "place * 2 + 1 - n % 2")
defect(int8_keys_are_widened_as_floats tensor_tiles.cuh plain "tensor<int8.*${wrong}"
  "b[1] = widen<2, 3>(type, r[step])" "b[1] = widen<2, 3>(float8_e4m3(), r[step])")
defect(key_scales_are_those_of_values visibility.cuh plain "tensor<float8_e4m3.*${wrong}"
  "__ldg(a.scales + kv_head)" "__ldg(a.scales + a.kv_heads + kv_head)")

# ---- attend_plain ----
defect(plain_slab_is_not_waited_for attend_plain.cu plain ${wrong}
  "__syncthreads();  // the slab is filled" "// the slab is filled")
defect(plain_slab_is_refilled_early attend_plain.cu thread ${race}
  "__syncthreads();  // no warp reads the slab before" "// no warp reads the slab before")
defect(plain_weights_are_not_waited_for attend_plain.cu plain ${wrong}
  "__syncthreads();  // the weights and corrections" "// the weights and corrections")
defect(plain_reads_a_key_past_the_end attend_plain.cu address "heap-buffer-overflow"
  "min(walk.key + plain_keys, walk.seen.end)" "min(walk.key + plain_keys, walk.seen.end + 1)")

# ---- attend_precise ----
defect(precise_limit_is_too_high attend_precise.cu plain ${wrong}
  "bias <= p.score_limit" "bias <= 100 * p.score_limit")
defect(precise_overlooks_values attend_precise.cu plain ${wrong}
  "limits.largest_value <= p.value_limit" "limits.largest_value >= 0")
defect(precise_measures_queries_wrong attend_precise.cu plain ${wrong}
  "squares = fma(" "squares = 1e-9 * fma(")
defect(precise_dot_in_fp32 attend_precise.cu plain ${wrong}
  "double product = 0" "float product = 0")
defect(precise_weights_are_not_waited_for attend_precise.cu thread ${race}
  "__syncwarp();  // the weights of all keys" "// the weights of all keys")

# ---- states ----
defect(fold_reads_before_it_is_written states.cu thread ${race}
  "__syncwarp();  // the next step may read what lane 0 wrote" "// the next step may read what lane 0 wrote")
defect(fold_writes_before_all_have_read states.cu thread ${race}
  "    __syncwarp();  // every lane has read max and sum\n    if" "    if")
defect(merge_fuses_a_product states.cu plain "merge.a, b. and merge.b, a. differ"
  "__fadd_rn(__fmul_rn(a, share_a), __fmul_rn(b, share_b))" "fmaf(a, share_a, __fmul_rn(b, share_b))")
defect(merge_does_not_clamp states.cu plain "(equal outputs do not stay equal|output of a merge)"
  "return mean < least ? least : mean > most ? most : mean" "return least < most ? mean : mean")

# ---- append ----
set(lost "token -?[0-9]+, head -?[0-9]+: ")
defect(append_takes_the_wrong_half append.cu plain "${lost}key"
  "is_interleaved ? i % 2 == 0 : i < pairs" "i % 2 == 0")
defect(append_drops_the_tail append.cu plain "${lost}key"
  "if (i >= 2 * pairs) return own" "if (i >= 2 * pairs) return pairs > 0 ? 0 : own")
defect(append_swaps_the_sign append.cu plain "${lost}key"
  "__fadd_rn(straight, -across) : __fadd_rn(straight, across)" "__fadd_rn(straight, across) : __fadd_rn(straight, -across)")
defect(append_is_off_by_one_row append.cu plain "${lost}(key|value|an element that no token has)"
  "size_t(head) * a.capacity" "size_t(head) * a.capacity + (head == 1)")
defect(append_writes_past_the_contents append.cu address "heap-buffer-overflow"
  "size_t(head) * a.capacity" "(size_t(head) + 1) * a.capacity")
defect(append_forgets_earlier_limits append.cu plain "${lost}limit of"
  "atomicMax(reinterpret_cast<int*>(limit)" "atomicExch(reinterpret_cast<unsigned*>(limit)")
defect(append_measures_before_rounding append.cu plain "${lost}limit of the norm"
  "const float back = to_float(stored)" "const float back = number")
defect(append_rounds_the_quotient_twice append.cu plain "${lost}value"
  "if (nearest == exact || nearest - nearest != 0) return nearest" "if (nearest - nearest == 0) return nearest")
defect(append_rounds_int8_toward_zero append.cu plain "${lost}key"
  "int(rintf(quotient))" "int(quotient)")
defect(append_stores_minus_128_as_a_number append.cu plain "${lost}(key|value)"
  "fabsf(quotient) < 127.5f" "fabsf(quotient) < 130.f")
defect(append_forgets_the_scale_of_int8 append.cu plain "${lost}key"
  "const float quotient = quotient_of(x, scale);\n  const int steps" "const float quotient = quotient_of(x, 0.02f + 0 * scale);\n  const int steps")

# ---- edge ----
set(spoilt "row [0-9]+: the ")
defect(finish_keeps_the_order_of_the_state edge.cu plain "${spoilt}output"
  "((size_t(batch) * a.count + place) * a.query_heads + head)" "size_t(row)")
defect(finish_leaves_scores_settled edge.cu plain "${spoilt}(log-sum-exp|output)"
  "const double max = restore_score(settled)" "const double max = settled")
defect(finish_takes_infinity_from_itself edge.cu plain "${spoilt}log-sum-exp is -?nan instead of inf"
  "max == top ? sum : sum * exp(max - top)" "sum * exp(max - top)")
defect(finish_takes_a_place_for_an_index edge.cu plain "${spoilt}log-sum-exp is [-+.e0-9]+ instead of -inf"
  "a.query_indices[place] >= a.query_lengths[batch]" "place >= a.query_lengths[batch]")
defect(finish_takes_a_row_too_many edge.cu address "heap-buffer-overflow"
  "if (row >= a.rows) return" "if (row > a.rows) return")
defect(finish_writes_lse_by_every_lane edge.cu thread ${race}
  "if (lane == 0) a.lse[row] = to_caller" "a.lse[row] = to_caller")
defect(finish_keeps_the_natural_base edge.cu plain "${spoilt}log-sum-exp"
  "a.is_base_two ? log_sum_exp / log_of_two : log_sum_exp" "log_sum_exp")
defect(narrowing_cuts_digits_off edge.cu plain "element [0-9]+: the bits"
  "pack(element(), x, 0.f)" "pack(element(), __uint_as_float(__float_as_uint(x) & 0xffffe000u), 0.f)")
defect(convert_takes_an_element_too_many edge.cu address "heap-buffer-overflow"
  "if (i < a.count)" "if (i <= a.count)")
