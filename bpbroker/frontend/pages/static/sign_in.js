// A token behind the # of the address is never sent to a server by the browser; here it becomes the form's key.
"use strict";
(() => {
  const given = decodeURIComponent(location.hash.slice(1));
  if (!given) return;
  history.replaceState(null, "", location.pathname + location.search);
  document.getElementById("key").value = given;
  document.getElementById("sign-in").submit();
})();
