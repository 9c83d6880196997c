"""What the tests of all scenarios find: `observing` lies beside this file, so its folder is where imports look."""
