/* NVML at its ABI, for tests: the symbols that evidence is collected with, after NVIDIA's nvml.h.
 *
 * What the "driver" says lies in the directory FAKE_NVML:
 *   state                "CC DEVTOOLS" (0 or 1 each), or "none": not supported
 *   gpuN/uuid            its UUID
 *   gpuN/report          a report, which answers the nonce in its bytes 4 to 35
 *   gpuN/certificates    its attestation certificate chain, PEM
 *   gpuN/error           a number that nvmlDeviceGetConfComputeGpuAttestationReport returns instead
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int nvmlReturn_t;
typedef struct gpu { int number; } *nvmlDevice_t;
enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, UNKNOWN = 999 };

typedef struct { unsigned int environment, ccFeature, devToolsMode; } nvmlConfComputeSystemState_t;
typedef struct {
    unsigned int certChainSize, attestationCertChainSize;
    unsigned char certChain[0x1000], attestationCertChain[0x1400];
} nvmlConfComputeGpuCertificate_t;
typedef struct {
    unsigned int isCecAttestationReportPresent, attestationReportSize, cecAttestationReportSize;
    unsigned char nonce[0x20], attestationReport[0x2000], cecAttestationReport[0x1000];
} nvmlConfComputeGpuAttestationReport_t;

static struct gpu gpus[16];
static int initialized;

static long load(int gpu, const char *name, void *buffer, size_t size)
{
    char path[4096];
    if (gpu < 0)
        snprintf(path, sizeof path, "%s/%s", getenv("FAKE_NVML"), name);
    else
        snprintf(path, sizeof path, "%s/gpu%d/%s", getenv("FAKE_NVML"), gpu, name);
    FILE *file = fopen(path, "rb");
    if (!file)
        return -1;
    long got = (long)fread(buffer, 1, size, file);
    fclose(file);
    return got;
}

nvmlReturn_t nvmlInitWithFlags(unsigned int flags)
{
    (void)flags;
    initialized = 1;
    return getenv("FAKE_NVML_INIT") ? atoi(getenv("FAKE_NVML_INIT")) : SUCCESS;
}

nvmlReturn_t nvmlShutdown(void) { initialized = 0; return SUCCESS; }

const char *nvmlErrorString(nvmlReturn_t result) { (void)result; return "an error of the fake driver"; }

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length)
{
    snprintf(version, length, "580.10.01");
    return SUCCESS;
}

nvmlReturn_t nvmlSystemGetConfComputeState(nvmlConfComputeSystemState_t *state)
{
    char text[16] = {0};
    if (!initialized)
        return UNINITIALIZED;
    if (load(-1, "state", text, sizeof text - 1) > 0 && strcmp(text, "none") == 0)
        return NOT_SUPPORTED;
    if (load(-1, "state", text, sizeof text - 1) < 0 || sscanf(text, "%u %u", &state->ccFeature, &state->devToolsMode) != 2)
        return UNKNOWN;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length)
{
    memset(uuid, 0, length);
    return load(device->number, "uuid", uuid, length - 1) < 0 ? INVALID_ARGUMENT : SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count)
{
    char uuid[96];
    for (*count = 0; *count < 16 && load((int)*count, "uuid", uuid, sizeof uuid) >= 0; ++*count)
        gpus[*count].number = (int)*count;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device)
{
    *device = &gpus[index];
    return index < 16 ? SUCCESS : INVALID_ARGUMENT;
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *wanted, nvmlDevice_t *device)
{
    unsigned int count;
    nvmlDeviceGetCount_v2(&count);
    for (unsigned int index = 0; index < count; ++index) {
        char uuid[96] = {0};
        load((int)index, "uuid", uuid, sizeof uuid - 1);
        if (strcmp(uuid, wanted) == 0) {
            *device = &gpus[index];
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetConfComputeGpuAttestationReport(nvmlDevice_t device, nvmlConfComputeGpuAttestationReport_t *report)
{
    char error[16] = {0};
    if (load(device->number, "error", error, sizeof error - 1) > 0)
        return atoi(error);
    long size = load(device->number, "report", report->attestationReport, sizeof report->attestationReport);
    if (size < 36 || memcmp(report->attestationReport + 4, report->nonce, sizeof report->nonce) != 0)
        return UNKNOWN;
    report->attestationReportSize = (unsigned int)size;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetConfComputeGpuCertificate(nvmlDevice_t device, nvmlConfComputeGpuCertificate_t *certificate)
{
    long size = load(device->number, "certificates", certificate->attestationCertChain, sizeof certificate->attestationCertChain);
    if (size < 0)
        return UNKNOWN;
    certificate->attestationCertChainSize = (unsigned int)size;
    return SUCCESS;
}
