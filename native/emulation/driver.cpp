// The emulated CUDA driver: initialisation, devices, contexts, errors. TREEATTN_EMULATION_SEED
// draws the order of streams, blocks, warps and lanes, TREEATTN_EMULATION_DEVICES the number of
// devices, TREEATTN_EMULATION_FAULT plants an error of one (device:operation:code); all are read by
// cuInit. TREEATTN_EMULATION_CAPABILITY is the compute capability that devices say they have.
#include "driver.hpp"

#include <cstdio>
#include <cstdlib>

namespace emulation {

driver& the_driver = *new driver;
thread_local context* current_context;

namespace {

// The device's operation after so many others fails.
CUresult plant_fault(int device, int operation, int code) {
  REQUIRE(device >= 0 && std::size_t(device) < the_driver.devices.size(), invalid_device);
  the_driver.devices[device].planted = code;
  the_driver.devices[device].planted_after = operation;
  return success;
}

}  // namespace

long setting(const char* name, long otherwise) {
  const char* text = std::getenv(name);
  return text ? std::atol(text) : otherwise;
}

std::string setting_text(const char* name) {
  const char* text = std::getenv(name);
  return text ? text : "";
}

}  // namespace emulation

using namespace emulation;

CUDA_API cuInit(unsigned) {
  std::lock_guard lock(the_driver.mutex);
  the_driver.random.seed(the_driver.seed = setting("TREEATTN_EMULATION_SEED", 0));
  while (long(the_driver.devices.size()) < setting("TREEATTN_EMULATION_DEVICES", 8)) {
    the_driver.devices.push_back({int(the_driver.devices.size())});
  }
  int device = 0, operation = 0, code = 0;
  if (std::sscanf(setting_text("TREEATTN_EMULATION_FAULT").c_str(), "%d:%d:%d", &device, &operation,
                  &code) == 3) {
    return plant_fault(device, operation, code);
  }
  return success;
}

// Not of the driver: the same for tests inside a process.
CUDA_API emulation_plant_fault(int device, int operation, int code) {
  std::lock_guard lock(the_driver.mutex);
  return plant_fault(device, operation, code);
}

CUDA_API cuDriverGetVersion(int* version) {
  *version = 12040;
  return success;
}

CUDA_API cuDeviceGetCount(int* count) {
  *count = int(the_driver.devices.size());
  return *count == 0 ? not_initialized : success;
}

CUDA_API cuDeviceGet(int* device, int ordinal) {
  REQUIRE(ordinal >= 0 && std::size_t(ordinal) < the_driver.devices.size(), invalid_device);
  *device = ordinal;
  return success;
}

CUDA_API cuDeviceGetName(char* name, int length, int device) {
  std::snprintf(name, length, "Emulated device %d", device);
  return success;
}

CUDA_API cuDeviceGetPCIBusId(char* text, int length, int device) {
  std::snprintf(text, length, "0000:%02x:00.0", device + 1);
  return success;
}

CUDA_API cuDeviceGetUuid_v2(unsigned char* uuid, int device) {
  std::memset(uuid, 0, 16);
  uuid[15] = static_cast<unsigned char>(device + 1);
  return success;
}

CUDA_API cuDeviceTotalMem_v2(std::size_t* bytes, int) {
  *bytes = device_bytes;
  return success;
}

CUDA_API cuDeviceGetAttribute(int* value, int attribute, int device) {
  static const std::map<int, int> values{
      {1, 1024},                       // MAX_THREADS_PER_BLOCK
      {8, int(shared_limit_unasked)},  // MAX_SHARED_MEMORY_PER_BLOCK
      {10, 32},                        // WARP_SIZE
      {13, 1000000},                   // CLOCK_RATE
      {16, 4},                         // MULTIPROCESSOR_COUNT
      {33, 0},                         // PCI_BUS_ID
      {34, 0},                         // PCI_DEVICE_ID
      {38, 1 << 20},                   // L2_CACHE_SIZE
      {41, 1},                         // UNIFIED_ADDRESSING
      {81, 228 << 10},                 // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
      {97, int(shared_limit)},         // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
  };
  constexpr int capability_major = 75, capability_minor = 76;
  REQUIRE(device >= 0 && std::size_t(device) < the_driver.devices.size(), invalid_device);
  if (attribute == capability_major || attribute == capability_minor) {
    const long capability = setting("TREEATTN_EMULATION_CAPABILITY", 90);
    *value = int(attribute == capability_major ? capability / 10 : capability % 10);
    return success;
  }
  auto found = values.find(attribute);
  REQUIRE(found != values.end(), invalid_value);
  *value = found->second;
  return success;
}

CUDA_API cuDevicePrimaryCtxRetain(context** c, int device) {
  std::lock_guard lock(the_driver.mutex);
  REQUIRE(device >= 0 && std::size_t(device) < the_driver.devices.size(), invalid_device);
  *c = &the_driver.devices[device];
  ++(*c)->uses;
  return success;
}

CUDA_API cuDevicePrimaryCtxReset_v2(int device) {
  std::unique_lock lock(the_driver.mutex);
  REQUIRE(device >= 0 && std::size_t(device) < the_driver.devices.size(), invalid_device);
  context* const home = &the_driver.devices[device];
  the_driver.changed.wait(lock, [&] {
    for (auto* s : the_driver.streams) {
      if (s->home == home && s->is_running) return false;
    }
    return true;
  });
  std::erase_if(the_driver.streams, [&](stream* s) {
    if (s->home != home) return false;
    delete s;
    return true;
  });
  std::erase_if(the_driver.memory, [&](auto& entry) {
    if (entry.second.home != home) return false;
    release(entry.first, entry.second);
    return true;
  });
  home->used = 0;
  home->broken = success;
  home->planted = success;
  the_driver.message.clear();
  return success;
}

// The last release of a context is its end: what it held is gone and its error forgotten.
CUDA_API cuDevicePrimaryCtxRelease_v2(int device) {
  {
    std::lock_guard lock(the_driver.mutex);
    REQUIRE(device >= 0 && std::size_t(device) < the_driver.devices.size(), invalid_device);
    REQUIRE(the_driver.devices[device].uses > 0, invalid_context);
    if (--the_driver.devices[device].uses > 0) return success;
  }
  return cuDevicePrimaryCtxReset_v2(device);
}

CUDA_API cuCtxSetCurrent(context* c) {
  std::lock_guard lock(the_driver.mutex);
  REQUIRE(!c || c->uses > 0, invalid_context);
  current_context = c;
  return success;
}

CUDA_API cuCtxGetCurrent(context** c) {
  *c = current_context;
  return success;
}

CUDA_API cuCtxSynchronize() {
  std::unique_lock lock(the_driver.mutex);
  if (const CUresult error = the_driver.refuse_while_capturing()) return error;
  REQUIRE(has_context(), invalid_context);
  context* const home = current_context;
  return the_driver.progress(lock, home, [=] {
    for (auto* s : the_driver.streams) {
      if (s->home == home && !s->queue.empty()) return false;
    }
    return true;
  });
}

CUDA_API cuDeviceCanAccessPeer(int* can, int, int) {
  *can = 1;
  return success;
}

CUDA_API cuCtxEnablePeerAccess(context*, unsigned) {
  return success;
}

CUDA_API cuGetErrorName(CUresult r, const char** text) {
  static const std::map<int, const char*> names{
      {success, "CUDA_SUCCESS"},
      {invalid_value, "CUDA_ERROR_INVALID_VALUE"},
      {out_of_memory, "CUDA_ERROR_OUT_OF_MEMORY"},
      {not_initialized, "CUDA_ERROR_NOT_INITIALIZED"},
      {invalid_device, "CUDA_ERROR_INVALID_DEVICE"},
      {invalid_image, "CUDA_ERROR_INVALID_IMAGE"},
      {invalid_context, "CUDA_ERROR_INVALID_CONTEXT"},
      {invalid_handle, "CUDA_ERROR_INVALID_HANDLE"},
      {not_found, "CUDA_ERROR_NOT_FOUND"},
      {not_ready, "CUDA_ERROR_NOT_READY"},
      {illegal_address, "CUDA_ERROR_ILLEGAL_ADDRESS"},
      {launch_timeout, "CUDA_ERROR_LAUNCH_TIMEOUT"},
      {launch_failed, "CUDA_ERROR_LAUNCH_FAILED"},
      {not_supported, "CUDA_ERROR_NOT_SUPPORTED"},
      {capture_unsupported, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
      {capture_invalidated, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"},
      {capture_unmatched, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED"},
      {capture_unjoined, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED"},
      {capture_isolation, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION"},
      {capture_implicit, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT"},
      {captured_event, "CUDA_ERROR_CAPTURED_EVENT"},
      {capture_wrong_thread, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD"},
  };
  auto found = names.find(r);
  *text = found == names.end() ? nullptr : found->second;
  return found == names.end() ? invalid_value : success;
}

// The emulation's own words, where it has some: a kernel's error with its place.
CUDA_API cuGetErrorString(CUresult r, const char** text) {
  static thread_local std::string kept;
  {
    std::lock_guard lock(the_driver.mutex);
    kept = the_driver.message;
  }
  if (r == success || kept.empty()) return cuGetErrorName(r, text);
  *text = kept.c_str();
  return success;
}
