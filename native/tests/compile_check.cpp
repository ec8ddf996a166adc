// Compiles kernels with the real NVRTC, which needs no GPU: compile_check KERNELS_FOLDER [TABLE].
// NVRTC_LIBRARY names the library (default libnvrtc.so.12, then .13). Prints a line for each
// instance and architecture, "sm registers spilled_bytes instance"; with a table, fails where a
// line needs more registers than the table's. A spill or a stack always fails. Exits 77 without
// NVRTC.
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

namespace {

struct api {
  int (*create)(void**, const char*, const char*, int, const char* const*, const char* const*);
  int (*destroy)(void**);
  int (*add_name)(void*, const char*);
  int (*compile)(void*, int, const char* const*);
  int (*log_size)(void*, std::size_t*);
  int (*log)(void*, char*);
  int (*cubin_size)(void*, std::size_t*);
};

struct wanted {
  const char* file;
  const char* expression;
};

// What hosts ask for: every tile and number of row warps, with their usual tiles of keys.
const std::vector<wanted> instances = {
    {"attend_tensor.cu", "attend_tensor<bfloat16, 64, 64, false, 1, 64, 3>"},
    {"attend_tensor.cu", "attend_tensor<bfloat16, 64, 64, false, 2, 64, 2>"},
    {"attend_tensor.cu", "attend_tensor<bfloat16, 64, 64, false, 4, 64, 2>"},
    {"attend_tensor.cu", "attend_tensor<bfloat16, 128, 128, false, 1, 64, 3>"},
    {"attend_tensor.cu", "attend_tensor<float16, 128, 128, false, 1, 64, 3>"},
    {"attend_tensor.cu", "attend_tensor<bfloat16, 128, 128, false, 1, 64, 2>"},
    {"attend_tensor.cu", "attend_tensor<bfloat16, 128, 128, false, 2, 64, 2>"},
    {"attend_tensor.cu", "attend_tensor<bfloat16, 128, 128, false, 4, 64, 2>"},
    {"attend_tensor.cu", "attend_tensor<float16, 128, 128, false, 4, 64, 2>"},
    {"attend_tensor.cu", "attend_tensor<bfloat16, 256, 128, false, 4, 64, 2>"},
    {"attend_tensor.cu", "attend_tensor<bfloat16, 256, 256, false, 1, 64, 2>"},
    {"attend_tensor.cu", "attend_tensor<bfloat16, 256, 256, false, 2, 64, 2>"},
    {"attend_tensor.cu", "attend_tensor<bfloat16, 576, 576, true, 1, 64, 2>"},
    {"attend_tensor.cu", "attend_tensor<bfloat16, 576, 576, true, 1, 32, 2>"},
    {"attend_tensor.cu", "attend_tensor<float16, 576, 576, false, 1, 32, 2>"},
    {"attend_plain.cu", "attend_plain<float, 128>"},
    {"attend_plain.cu", "attend_plain<float, 256>"},
    {"attend_plain.cu", "attend_plain<float, 640>"},
    {"attend_plain.cu", "attend_plain<float16, 128>"},
    {"attend_plain.cu", "attend_plain<bfloat16, 640>"},
    {"attend_precise.cu", "attend_precise<float>"},
    {"attend_precise.cu", "attend_precise<float16>"},
    {"attend_precise.cu", "attend_precise<bfloat16>"},
    {"states.cu", "merge_states"},
    {"states.cu", "fold_states"},
    {"states.cu", "weigh"},
    {"states.cu", "unweigh"},
    {"states.cu", "clear_state"},
};

std::string read(const std::filesystem::path& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

void* load() {
  if (const char* chosen = std::getenv("NVRTC_LIBRARY")) {
    // NVRTC finds its built-ins by soname: those beside it must be loaded before it.
    const std::filesystem::path path = chosen;
    if (path.has_parent_path()) {
      for (auto& file : std::filesystem::directory_iterator(path.parent_path())) {
        if (file.path().filename().string().starts_with("libnvrtc-builtins.so.")) {
          dlopen(file.path().c_str(), RTLD_NOW | RTLD_GLOBAL);
        }
      }
    }
    return dlopen(chosen, RTLD_NOW);
  }
  void* library = dlopen("libnvrtc.so.12", RTLD_NOW);
  return library ? library : dlopen("libnvrtc.so.13", RTLD_NOW);
}

template <class type>
void find(void* library, const char* name, type& target) {
  target = reinterpret_cast<type>(dlsym(library, name));
  if (!target) {
    std::printf("%s is missing from NVRTC\n", name);
    std::exit(1);
  }
}

// The first number behind `words`, or behind the line's `unit` where words come after it.
int number_before(const std::string& log, const char* unit) {
  const std::size_t at = log.find(unit);
  if (at == std::string::npos) return 0;
  std::size_t from = log.find_last_not_of(' ', at - 1);
  while (from > 0 && std::isdigit(static_cast<unsigned char>(log[from - 1])))
    --from;
  return std::atoi(log.c_str() + from);
}

std::map<std::string, int> read_table(const char* path) {
  std::map<std::string, int> table;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream fields(line);
    std::string architecture, expression;
    int registers, spilled;
    if (line.starts_with("#") || !(fields >> architecture >> registers >> spilled)) continue;
    std::getline(fields >> std::ws, expression);
    table[architecture + expression] = registers;
  }
  return table;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::printf("usage: compile_check KERNELS_FOLDER [TABLE]\n");
    return 2;
  }
  void* const library = load();
  if (!library) {
    std::printf("skipped: NVRTC was not found (%s)\n", dlerror());
    return 77;
  }
  api nvrtc;
  find(library, "nvrtcCreateProgram", nvrtc.create);
  find(library, "nvrtcDestroyProgram", nvrtc.destroy);
  find(library, "nvrtcAddNameExpression", nvrtc.add_name);
  find(library, "nvrtcCompileProgram", nvrtc.compile);
  find(library, "nvrtcGetProgramLogSize", nvrtc.log_size);
  find(library, "nvrtcGetProgramLog", nvrtc.log);
  find(library, "nvrtcGetCUBINSize", nvrtc.cubin_size);

  const std::filesystem::path folder = argv[1];
  const std::string texts[] = {read(folder / "device/primitives.cuh"),
                               read(folder / "arguments.cuh"), read(folder / "visibility.cuh"),
                               read(folder / "score_range.cuh")};
  const char* const headers[] = {texts[0].c_str(), texts[1].c_str(), texts[2].c_str(),
                                 texts[3].c_str()};
  const char* const names[] = {"primitives.cuh", "arguments.cuh", "visibility.cuh",
                               "score_range.cuh"};
  const std::map<std::string, int> table =
      argc > 2 ? read_table(argv[2]) : std::map<std::string, int>();
  int failed = 0;
  std::printf("# sm registers spilled_bytes instance\n");
  for (auto& instance : instances) {
    for (const char* architecture : {"80", "90"}) {
      void* program;
      nvrtc.create(&program, read(folder / instance.file).c_str(), instance.file, 4, headers,
                   names);
      nvrtc.add_name(program, instance.expression);
      const std::string target = std::string("--gpu-architecture=sm_") + architecture;
      const char* const options[] = {target.c_str(), "--std=c++17", "--ptxas-options=-v",
                                     "--fmad=false"};
      const bool is_states = !std::strcmp(instance.file, "states.cu");
      const int result = nvrtc.compile(program, is_states ? 4 : 3, options);
      std::size_t size = 0, cubin = 0;
      nvrtc.log_size(program, &size);
      std::string log(size, '\0');
      nvrtc.log(program, log.data());
      nvrtc.cubin_size(program, &cubin);
      nvrtc.destroy(&program);
      if (result != 0 || cubin == 0) {
        std::printf("%s for sm_%s: %s\n", instance.expression, architecture, log.c_str());
        ++failed;
        continue;
      }
      // A program's log has a part for each of its kernels, whose mangled names hold the length.
      const std::string kernel =
          std::string(instance.expression, std::strcspn(instance.expression, "<"));
      const std::size_t part = log.find("_Z" + std::to_string(kernel.size()) + kernel);
      if (part != std::string::npos) log.erase(0, part);
      const int registers = number_before(log, "registers");
      const int spilled =
          number_before(log, "bytes spill stores") + number_before(log, "bytes stack frame");
      std::printf("%s %d %d %s\n", architecture, registers, spilled, instance.expression);
      if (registers == 0 || spilled != 0) ++failed;
      if (argc > 2) {
        const auto known = table.find(std::string(architecture) + instance.expression);
        if (known == table.end() || registers > known->second) {
          std::printf("  more than the table's: %d\n", known == table.end() ? -1 : known->second);
          ++failed;
        }
      }
    }
  }
  std::printf("# %d failed\n", failed);
  return failed != 0;
}
