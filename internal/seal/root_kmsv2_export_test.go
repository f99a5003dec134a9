package seal

// OpenKMSv2Root is openKMSv2Root.
var OpenKMSv2Root = openKMSv2Root

// BindingOf is bindingOf.
var BindingOf = bindingOf
