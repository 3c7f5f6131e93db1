# How to move the files of a VM.
#
# input: model::decision::Transfer
# mode:  "direct", from proxy to proxy, or "relayed", through the Intermediaries' proxies
package sojourn.transfer

import rego.v1

mode := "direct"
