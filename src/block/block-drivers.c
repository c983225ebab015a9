/* The one table of block drivers; raw is none, it is the file itself. */
#include "block/block-file.h"
#include "block/http/http.h"
#include "block/nbd/client.h"
#include "block/luks/luks.h"
#include "block/qcow2/qcow2.h"
#include "block/vdi/vdi.h"
#include "block/vhd/vhd.h"
#include "block/vhdx/vhdx.h"
#include "block/vmdk/vmdk.h"

const struct block_driver *const block_drivers[] = {
        &block_file,
        &block_qcow2,
        &block_nbd,
        &block_http,
        &block_vdi,
        &block_vhd,
        &block_vhdx,
        &block_vmdk,
        &block_luks,
        NULL,
};
