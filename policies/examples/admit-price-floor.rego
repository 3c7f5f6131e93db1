# A price floor: below it nothing is worth the work, whatever `offer.price_milli` says today.
#
# Copy it to policies/admit.rego of the state folder.
package sojourn.admit

import rego.v1

import data.sojourn.defaults.admit as usual

# All that is usual holds too: room, country, price, VMs that stay apart.
refuse contains reason if some reason in usual.refuse

# Thousandths of the contract's currency, per hour, for each CPU.
floor_per_cpu := 5

price_floor := floor_per_cpu * input.descriptor.resources.cpus

refuse contains reason if {
	input.peer != null
	input.price_milli < price_floor
	reason := sprintf("a VM with %d CPUs is not hosted for less than %d (thousandths per hour)", [
		input.descriptor.resources.cpus,
		price_floor,
	])
}

# Null means any price. It must be asked for: null compares as less than every number.
refuse contains reason if {
	input.peer != null
	input.descriptor.restrictions.max_price_milli != null
	input.descriptor.restrictions.max_price_milli < price_floor
	reason := sprintf("the VM may cost %d at most, this site takes at least %d (thousandths per hour)", [
		input.descriptor.restrictions.max_price_milli,
		price_floor,
	])
}
