# Never an Intermediary: what peers ask for, this site's own hosts have or nobody has. Its own users
# may still have their VMs placed at its peers.
#
# Copy it to policies/delegate.rego of the state folder.
package sojourn.delegate

import rego.v1

import data.sojourn.defaults.delegate as usual

# All that is usual holds too: the hops that are left, and VMs that may not be delegated.
refuse contains reason if some reason in usual.refuse

refuse contains "this site passes no requests on" if input.peer != null
