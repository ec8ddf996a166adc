// Compiles kernels with the real NVRTC, which needs no GPU:
//
//   compile_check KERNELS_FOLDER TABLE ARCHITECTURE [STEP]
//
// TABLE has a line "architecture registers spilled_bytes instance" for each instance that the host
// chooses on a device of that architecture; a test of the host code holds the list to its choice.
// For 80 and 90 each line's instance is compiled to a CUBIN: it must use no more registers than its
// line says, and spill nothing. For 100, which NVRTC 12 does not know, the host falls back on PTX
// for an older architecture: the first instance of every kernel must come that way (or to a CUBIN,
// where NVRTC knows the device). Prints the lines as they were found, so that the output of 80 and
// 90 is a new table. An instance takes about a second: with STEP only the first of each kernel and
// every so many-th line are compiled, for runs that are short of time. TREEATTN_NVRTC_LIBRARY names
// the library (default libnvrtc.so.12, then .13). Ends with 77 without NVRTC.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;

constexpr int success = 0, invalid_option = 5;

struct api {
  int (*create)(void**, const char*, const char*, int, const char* const*, const char* const*);
  int (*destroy)(void**);
  int (*add_name)(void*, const char*);
  int (*compile)(void*, int, const char* const*);
  int (*log_size)(void*, std::size_t*);
  int (*log)(void*, char*);
  int (*cubin_size)(void*, std::size_t*);
  int (*ptx_size)(void*, std::size_t*);
};

// A line of the table.
struct instance {
  int registers;
  int spilled;
  std::string expression;

  // attend_plain<float, 128> is an instance of attend_plain.
  std::string kernel() const { return expression.substr(0, expression.find('<')); }
};

struct outcome {
  int result;
  std::string log;
  std::size_t cubin_bytes, ptx_bytes;
};

std::string read(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

// Sources and headers by file name.
std::map<std::string, std::string> read_all(const fs::path& folder, const char* extension) {
  std::map<std::string, std::string> files;
  for (auto& file : fs::recursive_directory_iterator(folder)) {
    if (file.path().extension() == extension) files[file.path().filename()] = read(file.path());
  }
  return files;
}

void* load() {
  const char* const chosen = std::getenv("TREEATTN_NVRTC_LIBRARY");
  if (chosen && *chosen) {
    // NVRTC finds its built-ins by soname: those beside it must be loaded before it.
    const fs::path path = chosen;
    if (fs::is_directory(path.parent_path())) {
      for (auto& file : fs::directory_iterator(path.parent_path())) {
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

api bind(void* library) {
  api nvrtc;
  find(library, "nvrtcCreateProgram", nvrtc.create);
  find(library, "nvrtcDestroyProgram", nvrtc.destroy);
  find(library, "nvrtcAddNameExpression", nvrtc.add_name);
  find(library, "nvrtcCompileProgram", nvrtc.compile);
  find(library, "nvrtcGetProgramLogSize", nvrtc.log_size);
  find(library, "nvrtcGetProgramLog", nvrtc.log);
  find(library, "nvrtcGetCUBINSize", nvrtc.cubin_size);
  find(library, "nvrtcGetPTXSize", nvrtc.ptx_size);
  return nvrtc;
}

// The number before `unit`; 0 where the log does not have it.
int number_before(const std::string& log, const char* unit) {
  const std::size_t at = log.find(unit);
  if (at == std::string::npos) return 0;
  std::size_t from = log.find_last_not_of(' ', at - 1);
  while (from > 0 && std::isdigit(static_cast<unsigned char>(log[from - 1])))
    --from;
  return std::atoi(log.c_str() + from);
}

std::vector<instance> read_table(const char* path, const std::string& architecture) {
  std::vector<instance> table;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream fields(line);
    std::string wanted;
    instance known;
    if (line.starts_with("#") || !(fields >> wanted >> known.registers >> known.spilled)) continue;
    std::getline(fields >> std::ws, known.expression);
    if (wanted == architecture) table.push_back(known);
  }
  return table;
}

class compiler {
 public:
  compiler(const api& nvrtc, const fs::path& kernels)
      : nvrtc_(nvrtc), sources_(read_all(kernels, ".cu")), headers_(read_all(kernels, ".cuh")) {
    for (auto& [name, text] : headers_) {
      header_names_.push_back(name.c_str());
      header_texts_.push_back(text.c_str());
    }
  }

  outcome compile(const instance& wanted, const std::string& target) const {
    const auto& [file, source] = *source_of(wanted.kernel());
    void* program;
    nvrtc_.create(&program, source.c_str(), file.c_str(), int(header_names_.size()),
                  header_texts_.data(), header_names_.data());
    nvrtc_.add_name(program, wanted.expression.c_str());
    const std::string architecture = "--gpu-architecture=" + target;
    // Merges keep products and sums apart, as the host compiles them.
    const char* const options[] = {architecture.c_str(), "--std=c++17", "--ptxas-options=-v",
                                   "--fmad=false"};
    outcome found{};
    found.result = nvrtc_.compile(program, file == "states.cu" ? 4 : 3, options);
    std::size_t size = 0;
    nvrtc_.log_size(program, &size);
    found.log.resize(size);
    nvrtc_.log(program, found.log.data());
    nvrtc_.cubin_size(program, &found.cubin_bytes);
    nvrtc_.ptx_size(program, &found.ptx_bytes);
    nvrtc_.destroy(&program);
    return found;
  }

 private:
  // The file that defines the kernel: its name and an opening bracket behind a blank.
  std::map<std::string, std::string>::const_iterator source_of(const std::string& kernel) const {
    for (auto file = sources_.begin(); file != sources_.end(); ++file) {
      if (file->second.find(" " + kernel + "(") != std::string::npos) return file;
    }
    std::printf("no source defines %s\n", kernel.c_str());
    std::exit(1);
  }

  api nvrtc_;
  std::map<std::string, std::string> sources_, headers_;
  std::vector<const char*> header_names_, header_texts_;
};

bool check_cubin(const compiler& nvrtc, const instance& wanted, const std::string& architecture) {
  outcome found = nvrtc.compile(wanted, "sm_" + architecture);
  if (found.result != success || found.cubin_bytes == 0) {
    std::printf("%s for sm_%s: %s\n", wanted.expression.c_str(), architecture.c_str(),
                found.log.c_str());
    return false;
  }
  // A program's log has a part for each of its kernels, whose mangled names hold the length.
  const std::string kernel = wanted.kernel();
  const std::size_t part = found.log.find("_Z" + std::to_string(kernel.size()) + kernel);
  if (part != std::string::npos) found.log.erase(0, part);
  const int registers = number_before(found.log, "registers");
  const int spilled = number_before(found.log, "bytes spill stores") +
                      number_before(found.log, "bytes stack frame");
  std::printf("%s %d %d %s\n", architecture.c_str(), registers, spilled, wanted.expression.c_str());
  if (registers > wanted.registers) std::printf("  more than the table's %d\n", wanted.registers);
  if (spilled > wanted.spilled) std::printf("  spills more than the table's %d bytes\n", wanted.spilled);
  return registers > 0 && registers <= wanted.registers && spilled <= wanted.spilled;
}

bool check_fall_back(const compiler& nvrtc, const instance& wanted) {
  outcome found = nvrtc.compile(wanted, "sm_100");
  const char* how = "CUBIN";
  if (found.result == invalid_option) {
    how = "PTX of compute_90";
    found = nvrtc.compile(wanted, "compute_90");
  }
  const bool good = found.result == success && (found.cubin_bytes > 0 || found.ptx_bytes > 1);
  std::printf("100 %s %s %s\n", wanted.expression.c_str(), good ? "by" : "fails by", how);
  if (!good) std::printf("%s\n", found.log.c_str());
  return good;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4 || argc > 5 || (argc == 5 && std::atoi(argv[4]) < 1)) {
    std::printf("usage: compile_check KERNELS_FOLDER TABLE ARCHITECTURE [STEP]\n");
    return 2;
  }
  void* const library = load();
  if (!library) {
    std::printf("skipped: NVRTC was not found (%s)\n", dlerror());
    return 77;
  }
  const compiler nvrtc(bind(library), argv[1]);
  const std::string architecture = argv[3];
  int compiled = 0, failed = 0;
  if (architecture == "100") {
    std::map<std::string, instance> kernels;
    for (auto& line : read_table(argv[2], "90")) {
      if (kernels.emplace(line.kernel(), line).second)
        ++compiled, failed += !check_fall_back(nvrtc, line);
    }
  } else {
    const int step = argc == 5 ? std::atoi(argv[4]) : 1;
    int index = 0;
    std::set<std::string> kernels;
    for (auto& line : read_table(argv[2], architecture)) {
      const bool first = kernels.insert(line.kernel()).second;
      if (index++ % step != 0 && !first) continue;
      ++compiled, failed += !check_cubin(nvrtc, line, architecture);
    }
  }
  std::printf("# %d compiled, %d failed\n", compiled, failed);
  return failed != 0 || compiled == 0;
}
